"""The three public operations of DCAL (section being written)."""
