# firnline with its API, web page and worker; see docs/containers.md.

FROM node:22-slim AS page
# For a registry other than npm's default: --build-arg NPM_CONFIG_REGISTRY=…; nothing of it is kept.
ARG NPM_CONFIG_REGISTRY
WORKDIR /src/web
COPY web/package.json web/package-lock.json web/.npmrc ./
RUN npm ci
COPY web ./
RUN npm run build


FROM python:3.11-slim AS build
# For a package index other than pip's default: --build-arg PIP_INDEX_URL=…; nor of it,
# since this stage is thrown away.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/firnline
ENV PATH=/opt/firnline/bin:$PATH
WORKDIR /src

# The dependencies in a layer of their own: a change of the code does not install them again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; \
p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
e = p['optional-dependencies']; \
print(*p['dependencies'], *e['postgres'], *e['dask'], sep='\n')" > requirements.txt \
 && pip install -c constraints.txt -r requirements.txt

# firnline/api and its siblings are links to the top-level folders; both ends are copied.
COPY . .
COPY --from=page /src/api/static api/static
RUN pip install -c constraints.txt '.[dask,postgres]'


FROM python:3.11-slim
# rasterio's wheels leave libexpat to the system, and slim images don't have it
# (rasterio-wheels issue 136).
RUN apt-get update \
 && apt-get install -y --no-install-recommends libexpat1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --home-dir /data firnline \
 && install --directory --owner=firnline /data
COPY --from=build /opt/firnline /opt/firnline
ENV PATH=/opt/firnline/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    FIRNLINE_DATA_DIR=/data
USER firnline
WORKDIR /data
VOLUME /data
EXPOSE 8000
# http.client, since urllib would ask a proxy of the environment for 127.0.0.1.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["firnline"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
