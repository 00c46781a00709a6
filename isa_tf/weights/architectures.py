"""How many blocks a ResNet has: for the network, and for telling it from the names of tensors."""

# Blocks in each stage, by depth.
DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BASIC = (18, 34)  # depths whose blocks have two convolutions; those of the others have three
