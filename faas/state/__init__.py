"""The gateway's database: engine, transactions, tables, migrations. See README.md beside this file."""
