FROM python:3.12-slim AS build
# [otel] for traces.
ARG EXTRAS=
COPY . /src
RUN python -m venv /opt/llamaproxy \
    && /opt/llamaproxy/bin/pip install --no-cache-dir "/src${EXTRAS}"

FROM python:3.12-slim
COPY --from=build /opt/llamaproxy /opt/llamaproxy
ENV PATH=/opt/llamaproxy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LLAMASTACK_URL=http://host.docker.internal:8321
# Once as root: Twisted writes its plugin cache, which a user without rights could not.
RUN twistd --help > /dev/null \
    && useradd --system --no-create-home llamaproxy
USER llamaproxy
WORKDIR /tmp
EXPOSE 8322
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-m", "llamaproxy.healthcheck"]
# No pid file: a container that is started again would find its own old one.
ENTRYPOINT ["twistd", "-n", "--pidfile=", "llamaproxy"]
CMD []
