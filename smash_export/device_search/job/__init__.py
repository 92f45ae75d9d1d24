"""The whole way in one command: a plan that is told before it starts, and the stages that follow it."""
