"""Lane processes (`faas serve --processes N`): a composition root, as `faas.server.main` is: it sees everything."""
