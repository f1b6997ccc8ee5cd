"""SQL, one module per aggregate: functions that take a transaction (`faas.state.session`) and plain values."""
