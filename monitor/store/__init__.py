"""The history: tables, writer, reader, outbox."""
