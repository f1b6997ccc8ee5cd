"""The gateway: decides. Routing, admission, scaling, schedules, queues; it alone owns function state."""
