# The page of one trained run, on the CPU, without root, without the network once it is built.
#
#     docker build -t artinsight .
#     docker run --rm -p 7860:7860 -v $PWD/runs/resnet18_best:/run-folder:ro artinsight
#
# Several runs: mount their parent folder and name them after the image: artinsight /runs/a /runs/b
FROM python:3.13-slim
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
COPY . /source
RUN pip install --no-cache-dir '/source[app]' && rm -rf /source
RUN useradd --create-home visitor
USER visitor
ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_ANALYTICS_ENABLED=False MPLCONFIGDIR=/tmp/matplotlib ARTINSIGHT_CACHE=/tmp/artinsight
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/', timeout=4).read()"]
ENTRYPOINT ["artinsight_app"]
CMD ["/run-folder"]
