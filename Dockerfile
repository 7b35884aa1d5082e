FROM python:3.12-slim AS build
# [otel] for traces, [redis] for --memory, [otel,redis] for both.
ARG EXTRAS=
COPY . /src
RUN python -m venv /opt/llamaproxy \
    && /opt/llamaproxy/bin/pip install --no-cache-dir "/src${EXTRAS}"

FROM python:3.12-slim
COPY --from=build /opt/llamaproxy /opt/llamaproxy
ENV PATH=/opt/llamaproxy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LLAMAPROXY_IN_CONTAINER=1 \
    LLAMAPROXY_ADMIN=tcp:8323 \
    LLAMASTACK_URL=http://host.docker.internal:8321
# Once as root: Twisted writes its plugin cache, which a user without rights could not.
RUN twistd --help > /dev/null \
    && useradd --system --no-create-home llamaproxy
USER llamaproxy
WORKDIR /tmp
# Clients ask at 8322. 8323 is the admin port, which asks for no key: probes and monitoring reach it
# on the container's network, everybody else if it is published (-p 127.0.0.1:8323:8323).
EXPOSE 8322 8323
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-m", "llamaproxy.healthcheck"]
# No pid file: a container that is started again would find its own old one.
ENTRYPOINT ["twistd", "-n", "--pidfile=", "llamaproxy"]
CMD []
