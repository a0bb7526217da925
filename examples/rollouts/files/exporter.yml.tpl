# ${config.name}, of rollout ${rollout.name}
instance: ${node.name}
zone: ${lookup(node.meta, "zone", "none")}
database:
  url: postgres://db.${lookup(node.meta, "zone", "main")}.internal/metrics
  password: "${secret.db}"
%{ if lookup(node.meta, "rack", "") != "" ~}
rack: ${node.meta.rack}
%{ endif ~}
labels:
%{ for key in sort(keys(node.meta)) ~}
  ${key}: ${jsonencode(node.meta[key])}
%{ endfor ~}
