"""What goes in: text sets, model references, suite files. No torch."""
