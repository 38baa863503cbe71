"""What `train.sh evaluate` is made of: a checkpoint, somebody who acts, the same scenes for everybody, measures."""
