"""From a row to a request: templates filled, chats read, images fetched and decoded."""
