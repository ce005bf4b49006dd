#!/bin/bash
# pki.sh DIR ADDRESS NODE PORT: the certificates and kubeconfigs of a test cluster.
#
# ADDRESS is the node's, NODE its name, PORT the API server's. EC keys, because twelve of them take no time. Everything
# is made in a directory beside DIR and renamed at the end: DIR is complete or absent.
set -euo pipefail
target=$1 address=$2 node=$3 port=$4
[ -d "$target" ] && exit 0
umask 077
rm -rf "$target.new"
mkdir -p "$target.new"
cd "$target.new"

quietly() { # openssl prints its progress to stderr; show it only when it fails
  "$@" 2>openssl.log || { cat openssl.log >&2; return 1; }
}

authority() { # NAME SUBJECT
  quietly openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$2" \
    -keyout "$1.key" -out "$1.crt" -addext "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"
}

certificate() { # NAME AUTHORITY SUBJECT USAGE [ALTERNATIVE NAMES]
  quietly openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$3" -keyout "$1.key" -out "$1.csr"
  {
    echo "keyUsage=critical,digitalSignature,keyEncipherment"
    echo "extendedKeyUsage=$4"
    if [ -n "${5:-}" ]; then echo "subjectAltName=$5"; fi
  } > "$1.ext"
  quietly openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days 3650 \
    -extfile "$1.ext" -out "$1.crt"
  rm "$1.csr" "$1.ext"
}

client() { # NAME SUBJECT: a client certificate and a kubeconfig that carries it
  certificate "$1" ca "$2" clientAuth
  cat > "$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters:
  - name: testbed
    cluster: {server: "https://127.0.0.1:$port", certificate-authority-data: $(base64 -w0 ca.crt)}
users:
  - name: $1
    user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}
contexts:
  - name: testbed
    context: {cluster: testbed, user: $1}
current-context: testbed
YAML
}

authority ca kube-ca
authority front front-proxy-ca
# ServiceAccount tokens are signed with RSA: RS256 is what every verifier of tokens can be expected to know.
quietly openssl genrsa -out sa.key 2048
quietly openssl rsa -in sa.key -pubout -out sa.pub
certificate apiserver ca "/CN=kube-apiserver" serverAuth \
  "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:10.96.0.1,IP:$address"
certificate kubelet-client ca "/O=system:masters/CN=kube-apiserver-kubelet-client" clientAuth
certificate kubelet-server ca "/O=system:nodes/CN=system:node:$node" serverAuth \
  "DNS:$node,DNS:localhost,IP:$address,IP:127.0.0.1"
certificate front-client front "/CN=front-proxy-client" clientAuth
client admin "/O=system:masters/CN=admin"
client kube-controller-manager "/CN=system:kube-controller-manager"
client kube-scheduler "/CN=system:kube-scheduler"
client kube-proxy "/CN=system:kube-proxy"
client kubelet "/O=system:nodes/CN=system:node:$node"
rm -f openssl.log
mv "$target.new" "$target"
