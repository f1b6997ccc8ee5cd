"""WebSocket APIs: connections that are ours, each message of which invokes a function, as on Amazon API Gateway."""
