"""What ``abyssal bench`` measures: ours beside a named peer, on the same work, in one run."""
