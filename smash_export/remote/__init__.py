"""A device that is elsewhere: files go there, a command of this program runs there, answers come back."""
