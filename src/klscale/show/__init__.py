"""What people see: tables, sentences, pictures, the page and its server."""
