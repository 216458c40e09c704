"""How large a run is: parameters, FLOPs, memory, and the speed of the machines."""
