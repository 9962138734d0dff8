"""The stack of servers, and the doctor that finds what is broken."""
