{{/* Refuses what would install and then not work, with the reason and the way out. */}}
{{- define "rollbook.preflight" -}}
{{- if gt (int .Values.registry.replicas) 1 -}}
{{- fail "\n\nregistry.replicas is more than 1: this version does not copy the book between registries yet, so two of them would tell two truths. Set registry.replicas=1; sidecars go on answering from memory while the registry restarts." -}}
{{- end -}}
{{- if gt (int .Values.operator.replicas) 1 -}}
{{- fail "\n\noperator.replicas is more than 1: in this version an operator that starts takes over from the one that runs, so two would go on replacing each other. Set operator.replicas=1; pods with a sidecar stay registered while the operator restarts." -}}
{{- end -}}
{{- range $component := list "registry" "operator" "webhook" -}}
{{- $account := (index $.Values $component).serviceAccount -}}
{{- if and (not $account.create) (not $account.name) -}}
{{- fail (printf "\n\n%s.serviceAccount.create is false, so %s.serviceAccount.name must name an existing ServiceAccount." $component $component) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.webhook.enabled (le (int .Values.webhook.terminationGracePeriodSeconds) (int .Values.webhook.drainSeconds)) -}}
{{- fail "\n\nwebhook.terminationGracePeriodSeconds must be more than webhook.drainSeconds, or a webhook is killed before it has finished." -}}
{{- end -}}
{{- end -}}
