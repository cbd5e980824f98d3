"""Pictures and captions that come from elsewhere: names and archives that nobody vouches for."""
