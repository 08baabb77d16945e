"""What a network costs at given widths: MACs, parameters, ms; and the widths that the CPU likes."""
