"""What each part of a report says: its analysis, its table and its text, one file a section."""
