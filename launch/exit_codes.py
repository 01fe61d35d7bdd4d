"""What exit codes mean, of the command and of every role."""

DONE = 0
FAILED = 1
WRONG_INPUT = 2  # the user's configuration or input: starting again would not help
HOPELESS = 3  # of a role: it found a fault that it would only meet again; the command's is FAILED
START_ME_AGAIN = 70  # a process ended itself on purpose, for example to get rid of a call that blocks it
