"""What every kernel costs on every supported chip, told without a GPU, with a gate against the committed
baseline."""
