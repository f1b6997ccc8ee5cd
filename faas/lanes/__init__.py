"""Lane processes (`faas serve --processes N`): a composition root, as `faas.server` is: it sees everything."""
