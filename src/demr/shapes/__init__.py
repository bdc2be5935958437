"""The embedded world: short videos of moving coloured shapes, with sentences and true windows."""
