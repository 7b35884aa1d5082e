# What runs is gathered in the first stage and is all that there is in the second: no shell, no
# pip, no compiler (deploy/image.py).
FROM python:3.12-slim AS build
# [otel] for traces, [redis] for --memory, [otel,redis] for both.
ARG EXTRAS=
COPY . /src
RUN pip install --no-cache-dir --no-compile --root-user-action=ignore \
        --constraint /src/constraints.txt "/src${EXTRAS}" \
    && python -B /src/deploy/image.py /image

FROM scratch
COPY --from=build /image /
ENV PATH=/usr/local/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    LLAMAPROXY_IN_CONTAINER=1 \
    LLAMAPROXY_ADMIN=tcp:8323 \
    LLAMASTACK_URL=http://host.docker.internal:8321
LABEL org.opencontainers.image.title="llamaproxy" \
      org.opencontainers.image.description="Gives any OpenAI client the tools of a Llama Stack server" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.source="https://github.com/llamaproxy/llamaproxy" \
      org.opencontainers.image.documentation="https://github.com/llamaproxy/llamaproxy/tree/main/docs"
# By number, as Kubernetes can tell only of a number that it is not root's.
USER 65532:65532
WORKDIR /
# Clients ask at 8322. 8323 is the admin port, which asks for no key: probes and monitoring reach it
# on the container's network, everybody else if it is published (-p 127.0.0.1:8323:8323).
EXPOSE 8322 8323
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-m", "llamaproxy.healthcheck"]
# No pid file: a container that is started again would find its own old one.
ENTRYPOINT ["twistd", "-n", "--pidfile=", "llamaproxy"]
