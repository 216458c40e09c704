"""How often the machines of a run on Google Cloud write and read its bucket, in seconds.

Each time is an operation that Google bills: writing and listing are of class A, reading is of class B and costs a
twelfth. infra/estimate counts them by these numbers. On this machine, where files are free, some are shorter.
"""

HEARTBEAT = 20.0  # a machine writes its status, and reads whether its job was changed
LOOK = 5.0  # a machine reads whether the run is over
METRICS = 10.0  # the leader writes the newest file of metrics
STATUS = 5.0  # the leader reads and writes the run's status; Google takes about one write a second of an object
LEASE = 5.0  # the Lighthouse's host renews its lease. A lost host is replaced after three, so this is no rarer
MONITORING = 60.0  # the master lists the metrics, and reads the newest file of them for Cloud Monitoring
