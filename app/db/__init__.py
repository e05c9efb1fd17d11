"""What is kept: tables, transactions, the audit trail, migrations and the reads of the pages."""
