# Debian's /etc/profile sets PATH anew in login shells, as which Ray's cluster launcher runs its commands, and some of KubeRay's.
PATH=/opt/venv/bin:$PATH
