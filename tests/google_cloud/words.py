"""Legal values that neither the provider's schema nor the SDK has as types; Google's documentation lists them."""

_TEMPLATE = "RegionInstanceTemplate"
_GROUP = "RegionInstanceGroupManager"
_ALIGNERS = (
    "ALIGN_NONE ALIGN_DELTA ALIGN_RATE ALIGN_INTERPOLATE ALIGN_NEXT_OLDER ALIGN_MIN ALIGN_MAX ALIGN_MEAN ALIGN_COUNT "
    "ALIGN_SUM ALIGN_STDDEV ALIGN_COUNT_TRUE ALIGN_COUNT_FALSE ALIGN_FRACTION_TRUE ALIGN_PERCENTILE_99 "
    "ALIGN_PERCENTILE_95 ALIGN_PERCENTILE_50 ALIGN_PERCENTILE_05 ALIGN_PERCENT_CHANGE"
)
_REDUCERS = (
    "REDUCE_NONE REDUCE_MEAN REDUCE_MIN REDUCE_MAX REDUCE_SUM REDUCE_STDDEV REDUCE_COUNT REDUCE_COUNT_TRUE "
    "REDUCE_COUNT_FALSE REDUCE_FRACTION_TRUE REDUCE_PERCENTILE_99 REDUCE_PERCENTILE_95 REDUCE_PERCENTILE_50 "
    "REDUCE_PERCENTILE_05"
)
_WORDS = {
    "*.deletionPolicy": "DELETE ABANDON PREVENT",
    "*.perSeriesAligner": _ALIGNERS,
    "*.crossSeriesReducer": _REDUCERS,
    "*.comparison": "COMPARISON_GT COMPARISON_LT",
    "Workflow.callLogLevel": "CALL_LOG_LEVEL_UNSPECIFIED LOG_ALL_CALLS LOG_ERRORS_ONLY LOG_NONE",
    f"{_TEMPLATE}Scheduling.provisioningModel": "STANDARD SPOT FLEX_START RESERVATION_BOUND",
    f"{_TEMPLATE}Scheduling.instanceTerminationAction": "STOP DELETE",
    f"{_TEMPLATE}Scheduling.onHostMaintenance": "MIGRATE TERMINATE",
    f"{_TEMPLATE}NetworkInterface.nicType": "GVNIC VIRTIO_NET IDPF MRDMA IRDMA",
    f"{_TEMPLATE}NetworkInterface.stackType": "IPV4_ONLY IPV4_IPV6 IPV6_ONLY",
    f"{_TEMPLATE}ReservationAffinity.type": "ANY_RESERVATION SPECIFIC_RESERVATION NO_RESERVATION",
    f"{_TEMPLATE}Disk.mode": "READ_WRITE READ_ONLY",
    f"{_TEMPLATE}Disk.type": "PERSISTENT SCRATCH",
    f"{_TEMPLATE}Disk.interface": "SCSI NVME",
    f"{_TEMPLATE}.keyRevocationActionType": "NONE STOP",
    f"{_GROUP}.distributionPolicyTargetShape": "ANY BALANCED EVEN ANY_SINGLE_ZONE",
    f"{_GROUP}.waitForInstancesStatus": "STABLE UPDATED",
    f"{_GROUP}.listManagedInstancesResults": "PAGELESS PAGINATED",
    f"{_GROUP}TargetSizePolicy.mode": "BULK INDIVIDUAL",
    f"{_GROUP}UpdatePolicy.type": "OPPORTUNISTIC PROACTIVE",
    f"{_GROUP}UpdatePolicy.minimalAction": "REFRESH RESTART REPLACE",
    f"{_GROUP}UpdatePolicy.mostDisruptiveAllowedAction": "NONE REFRESH RESTART REPLACE",
    f"{_GROUP}UpdatePolicy.replacementMethod": "SUBSTITUTE RECREATE",
    f"{_GROUP}UpdatePolicy.instanceRedistributionType": "PROACTIVE NONE",
    f"{_GROUP}InstanceLifecyclePolicy.defaultActionOnFailure": "REPAIR DO_NOTHING",
    f"{_GROUP}InstanceLifecyclePolicy.onFailedHealthCheck": "DEFAULT_ACTION REPAIR DO_NOTHING",
    f"{_GROUP}InstanceLifecyclePolicy.forceUpdateOnRepair": "YES NO",
    f"{_GROUP}InstanceLifecyclePolicyOnRepair.allowChangingZone": "YES NO",
    "Bucket.publicAccessPrevention": "inherited enforced",
    "Bucket.storageClass": "STANDARD NEARLINE COLDLINE ARCHIVE MULTI_REGIONAL REGIONAL",
    "BucketLifecycleRuleAction.type": "Delete SetStorageClass AbortIncompleteMultipartUpload",
    "BucketLifecycleRuleCondition.withState": "LIVE ARCHIVED ANY",
    "BucketObject.storageClass": "STANDARD NEARLINE COLDLINE ARCHIVE MULTI_REGIONAL REGIONAL",
    "Firewall.direction": "INGRESS EGRESS",
    "FirewallLogConfig.metadata": "EXCLUDE_ALL_METADATA INCLUDE_ALL_METADATA",
    "IAMCustomRole.stage": "ALPHA BETA GA DEPRECATED DISABLED EAP",
    "JobHttpTarget.httpMethod": "POST GET HEAD PUT DELETE PATCH OPTIONS",
    "MetricMetricDescriptor.metricKind": "DELTA GAUGE CUMULATIVE",
    "MetricMetricDescriptor.valueType": "BOOL INT64 DOUBLE STRING DISTRIBUTION MONEY",
    "MetricMetricDescriptorLabel.valueType": "BOOL INT64 STRING",
    "MetricDescriptor.metricKind": "METRIC_KIND_UNSPECIFIED GAUGE DELTA CUMULATIVE",
    "MetricDescriptor.valueType": "BOOL INT64 DOUBLE STRING DISTRIBUTION",
    "MetricDescriptorLabel.valueType": "STRING BOOL INT64",
    "Network.routingMode": "REGIONAL GLOBAL",
    "NotificationChannel.type": "email pubsub slack sms webhook_basicauth webhook_tokenauth pagerduty",
    "Repository.format": "DOCKER MAVEN NPM PYTHON APT YUM GO KFP GENERIC",
    "Repository.mode": "STANDARD_REPOSITORY VIRTUAL_REPOSITORY REMOTE_REPOSITORY",
    "RepositoryCleanupPolicy.action": "DELETE KEEP",
    "RepositoryCleanupPolicyCondition.tagState": "TAGGED UNTAGGED ANY",
    "RouterNat.natIpAllocateOption": "MANUAL_ONLY AUTO_ONLY",
    "RouterNat.sourceSubnetworkIpRangesToNat": (
        "ALL_SUBNETWORKS_ALL_IP_RANGES ALL_SUBNETWORKS_ALL_PRIMARY_IP_RANGES LIST_OF_SUBNETWORKS"
    ),
    "RouterNatLogConfig.filter": "ERRORS_ONLY TRANSLATIONS_ONLY ALL",
    "AlertPolicy.combiner": "AND OR AND_WITH_MATCHING_RESOURCE",
    "AlertPolicy.severity": "CRITICAL ERROR WARNING",
}
ENUMS = {where: tuple(words.split()) for where, words in _WORDS.items()}

RFC1035 = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
_MEMBER = r"(allUsers|allAuthenticatedUsers|(serviceAccount|user|group):[^@\s]+@[^@\s]+|(domain|principal(Set)?):\S+)"
_ROLE = r"(roles/[A-Za-z0-9_.]+|(projects|organizations)/[^/]+/roles/[A-Za-z0-9_.]+)"
PATTERNS = {
    "Network.name": RFC1035,
    "Subnetwork.name": RFC1035,
    "Subnetwork.ipCidrRange": r"\d{1,3}(\.\d{1,3}){3}/\d{1,2}",
    "Firewall.name": RFC1035,
    "Router.name": RFC1035,
    "RouterNat.name": RFC1035,
    f"{_TEMPLATE}.name": RFC1035,
    f"{_GROUP}.name": RFC1035,
    f"{_GROUP}.baseInstanceName": r"[a-z]([-a-z0-9]{0,56}[a-z0-9])?",
    "Bucket.name": r"(?!goog)[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]",
    "Account.accountId": r"[a-z][-a-z0-9]{4,28}[a-z0-9]",
    "WorkloadIdentityPool.workloadIdentityPoolId": r"(?!gcp-)[a-z0-9-]{4,32}",
    "WorkloadIdentityPool.displayName": r".{0,32}",
    "WorkloadIdentityPoolProvider.workloadIdentityPoolProviderId": r"(?!gcp-)[a-z0-9-]{4,32}",
    "WorkloadIdentityPoolProvider.attributeCondition": r".{0,4096}",
    "IAMCustomRole.roleId": r"[a-zA-Z0-9_.]{3,64}",
    "Repository.repositoryId": r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?",
    "Job.name": r"[a-zA-Z0-9_-]{1,500}",
    "Service.service": r"[a-z0-9]+\.googleapis\.com",
    "BucketIAMMember.member": _MEMBER,
    "IAMMember.member": _MEMBER,
    "RepositoryIamMember.member": _MEMBER,
    "BucketIAMMember.role": _ROLE,
    "IAMMember.role": _ROLE,
    "RepositoryIamMember.role": _ROLE,
}
