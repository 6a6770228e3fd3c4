{{- define "hostvol.labels" -}}
app.kubernetes.io/name: hostvol
app.kubernetes.io/part-of: hostvol
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "hostvol.controllerSelector" -}}
app.kubernetes.io/name: hostvol
app.kubernetes.io/component: controller
{{- end }}

{{- define "hostvol.nodeSelector" -}}
app.kubernetes.io/name: hostvol
app.kubernetes.io/component: node
{{- end }}

{{- define "hostvol.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* How the sidecars write the driver's name into the names of their Leases. */}}
{{- define "hostvol.leaseName" -}}
{{ .Values.driverName | replace "." "-" }}
{{- end }}

{{/* What a schema cannot say. */}}
{{- define "hostvol.check" -}}
{{- $names := dict }}
{{- $paths := dict }}
{{- range $index, $pool := .Values.pools }}
{{- if hasKey $names $pool.name }}
{{- fail (printf "pools[%d].name: %q stands there twice; every pool needs a name of its own" $index $pool.name) }}
{{- end }}
{{- if hasKey $paths $pool.path }}
{{- fail (printf "pools[%d].path: %q stands there twice; a directory is one pool" $index $pool.path) }}
{{- end }}
{{- if regexMatch "^/(dev|proc|run|sys|tmp)(/|$)" $pool.path }}
{{- fail (printf "pools[%d].path: what lies in %q does not outlive a reboot; choose a directory on a disk" $index $pool.path) }}
{{- end }}
{{- $_ := set $names $pool.name true }}
{{- $_ := set $paths $pool.path true }}
{{- end }}
{{- $socket := printf "%s/plugins/%s/csi.sock" .Values.kubeletDir .Values.driverName }}
{{- if gt (len $socket) 107 }}
{{- fail (printf "kubeletDir, driverName: the socket's path %q is longer than the 107 bytes that Linux allows; shorten one" $socket) }}
{{- end }}
{{- end }}

{{/* Security of every container in the controller's pod; its user is the pod's. */}}
{{- define "hostvol.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
