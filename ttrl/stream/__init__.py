"""Questions that arrive while a run goes on: read, kept, dealt out to steps, and answered once."""
