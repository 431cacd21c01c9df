# The coordinator:            docker build --target coordinator -t txcoord .
# The example services:       docker build --target examples -t txcoord-examples .
FROM python:3.12-slim AS coordinator

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/build/constraints.txt

COPY constraints.txt pyproject.toml README.md LICENSE CHANGELOG.md /build/
COPY txcoord /build/txcoord
RUN pip install "/build[all]"

# The embedded store's file lives in a volume; a database of its own is named by TXCOORD_STORE.
RUN useradd --system --uid 10001 --create-home --home-dir /data txcoord
USER txcoord
WORKDIR /data
VOLUME /data

ENV TXCOORD_HOST=0.0.0.0 \
    TXCOORD_PORT=36789 \
    TXCOORD_GRPC_PORT=36790 \
    TXCOORD_STORE=sqlite:////data/txcoord.db
EXPOSE 36789 36790
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['TXCOORD_PORT'] + '/readyz', timeout=2)"]
ENTRYPOINT ["txcoord"]
CMD ["serve"]


FROM coordinator AS examples

USER root
COPY sdk /build/sdk
RUN pip install "/build/sdk[all]"
COPY examples/__init__.py examples/service.py examples/order.py examples/storage.py examples/bff.py \
    examples/users.py examples/gift.py examples/mail.py /app/examples/
USER txcoord
ENV PYTHONPATH=/app
# Each service says in docker-compose.yml how its health is asked for.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m"]
CMD ["examples.bff", "--host", "0.0.0.0"]


# What `docker build .` makes.
FROM coordinator
