# The package of catscii, and an image that contains only what the package needs.
#
#     nix-build                                  # ./result/bin/catscii
#     nix-build -A image && ./result | docker load
#     nix-build -A tests
#
# The package runs the script with the interpreter and the packages of nixpkgs, from its binary cache. The image has a
# smaller interpreter, which is made of the same parts. docs/image.md explains what is left out, and why.
{
  pkgs ? import <nixpkgs> { },
  telemetry ? true, # add the packages that SENTRY_DSN, HONEYCOMB_API_KEY and OTEL_* need
}:
let
  inherit (pkgs) lib;
  python = pkgs.python3;

  # The script alone defines the version.
  version = lib.removeSuffix "\"" (lib.removePrefix assignment line);
  assignment = "__version__ = \"";
  line = lib.findFirst (lib.hasPrefix assignment) (throw "catscii.py has no __version__") lines;
  lines = lib.splitString "\n" (builtins.readFile ./catscii.py);

  packages =
    ps:
    with ps;
    [
      bottle
      certifi
      maxminddb
      pillow
      urllib3
      waitress
    ]
    ++ lib.optionals telemetry (extras ps);
  extras = ps: [
    ps.opentelemetry-exporter-otlp-proto-http
    ps.opentelemetry-sdk
    ps.sentry-sdk
  ];

  # The script and its bytecode. Python never checks whether the script is newer, because files in the store do not
  # change. The program that starts the script is also written in Python, because the image has no shell.
  install =
    interpreter:
    pkgs.runCommand "catscii-${version}"
      {
        passthru = {
          inherit image tests development;
        };
        meta = {
          description = "Cats as coloured ASCII art, over HTTP and in the terminal";
          longDescription = ''
            Serves random cats as coloured ASCII art, and counts visits by country without keeping addresses.
            `catscii art` draws a picture in the terminal.
          '';
          license = lib.licenses.mit;
          mainProgram = "catscii";
          platforms = lib.platforms.linux ++ lib.platforms.darwin;
        };
      }
      ''
        mkdir -p $out/bin $out/lib
        cp ${./catscii.py} $out/lib/catscii.py
        ${interpreter} -I -m compileall -q --invalidation-mode unchecked-hash $out/lib

        cat > $out/bin/catscii <<END
        #!${interpreter} -I
        import sys
        sys.path.append("$out/lib")
        import catscii
        catscii.start()
        END
        chmod +x $out/bin/catscii
        ${trial interpreter}
      '';

  # The build fails if something is missing for what the program does without a network: pictures in all formats, and
  # CGI, which reports an error and a trace.
  trial = interpreter: ''
    ${interpreter} -I - > art <<END
    import sys
    sys.path.append("$out/lib")
    import catscii
    for name in catscii.PICTURE_FORMATS:
        catscii.draw_house_cat(42).save("cat", name)
        if catscii.main(["art", "cat"]) != 0:
            sys.exit(f"{name}: a picture in this format cannot be shown")
    for name in "ansi html json png text".split():
        catscii.main(["art", "house-42", "--format", name])
    END

    export GATEWAY_INTERFACE=CGI/1.1 REQUEST_METHOD=GET SERVER_NAME=localhost SERVER_PORT=80
    export ANALYTICS_DB=$PWD/catscii.db CAT_SOURCES=
    PATH_INFO=/ $out/bin/catscii > page
    grep "^Status: 200 OK" page
    ${lib.optionalString telemetry ''
      export SENTRY_DSN=http://key@localhost:9/1 OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:9
    ''}
    PATH_INFO=/panic $out/bin/catscii > page
    grep "something went wrong here" page
  '';

  image = pkgs.dockerTools.streamLayeredImage {
    name = "catscii";
    tag = "latest";
    created = "1970-01-01T00:00:01Z"; # so that the same input gives the same image
    contents = [ pkgs.cacert ];

    # fly.io's init looks up the user in /etc/passwd. Any user can write to /db and /tmp, because the image may run as
    # another user.
    extraCommands = ''
      mkdir -p etc
      echo "catscii:x:65532:65532::/:" > etc/passwd
      mkdir -m 1777 db tmp
    '';

    # The interpreter, the countries, the certificates and the script each have a layer. No other layer refers to the
    # script, so that a change of the script changes only its small layer.
    config = {
      Entrypoint = [ "${onRuntime}/bin/catscii" ]; # and no Cmd: `docker run catscii art house-42` adds arguments
      Env = [
        "SSL_CERT_FILE=${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt" # without this, all requests to sources fail
        "GEOLITE2_COUNTRY_DB=${pkgs.dbip-country-lite.mmdb}"
        "ANALYTICS_DB=/db/analytics.db"
      ];
      ExposedPorts."8080/tcp" = { };
      User = "65532"; # Docker and fly.io's init let this user write to a volume at /db
    };
  };

  onRuntime = (install "${runtime}/bin/python3").overrideAttrs {
    allowedRequisites = [
      "out"
      runtime
    ];
  };

  # One tree with only Python, the packages and the shared libraries that they link to. All files are copied, as NixOS
  # does for its initrd. Only one C extension is compiled.
  runtime =
    pkgs.runCommand "catscii-runtime"
      {
        nativeBuildInputs = [
          (lib.getBin pkgs.stdenv.cc.libc) # ldd
          (lib.getBin pkgs.binutils-unwrapped) # strip
          pkgs.nukeReferences
          pkgs.patchelf
        ];
        allowedReferences = [ "out" ];
      }
      ''
        shopt -s extglob nullglob
        mkdir -p $out/bin $out/lib
        cp -L ${python}/bin/${python.executable} $out/bin/python3
        cp -rL ${slim}/lib/${python.libPrefix} $out/lib
        chmod -R u+w $out

        cd $out/lib/${python.libPrefix}
        rm -rf ${toString unneeded}
        find . -name __pycache__ -prune -exec rm -rf {} +
        find . \( -name '*.pyi' -o -name '*.proto' \) -delete

        binaries() { find $out -type f \( -name '*.so' -o -name '*.so.*' -o -name python3 \) ! -name 'ld-*' "$@"; }
        loader=$(patchelf --print-interpreter $out/bin/python3)
        cp -L "$loader" $out/lib
        binaries -exec ldd {} + > $TMPDIR/linked
        if grep "not found" $TMPDIR/linked; then exit 1; fi
        sed -n 's|.* => \(/[^ ]*\) .*|\1|p' $TMPDIR/linked | sort -u | while read -r library; do
          [ -e "$out/lib/$(basename "$library")" ] || cp -L "$library" $out/lib
        done
        chmod -R u+w $out
        binaries -exec strip --strip-unneeded {} +
        binaries -exec patchelf --set-rpath $out/lib {} +
        patchelf --set-interpreter "$out/lib/$(basename "$loader")" $out/bin/python3
        find $out -type f -exec nuke-refs -e $out {} +

        ${python.interpreter} -I -m compileall -q -b --invalidation-mode unchecked-hash $out/lib/${python.libPrefix}
        find $out -name '*.py' -delete

        for name in ${lib.escapeShellArgs denied}; do
          if find $out -name "$name" | grep .; then
            echo "the image must not contain $name" >&2
            exit 1
          fi
        done
        $out/bin/python3 -I -c 'import sys; [__import__(name) for name in sys.argv[1:]]' ${toString imported}
      '';

  imported = [
    "bottle certifi maxminddb PIL.Image sqlite3 ssl urllib3 waitress"
  ]
  ++ lib.optionals telemetry [
    "opentelemetry.exporter.otlp.proto.http.trace_exporter sentry_sdk.integrations.bottle"
  ];

  slim = python.withPackages (
    ps: map (package: if package == ps.pillow then slimPillow package else package) (packages ps)
  );

  # Pillow itself reads GIF, PNG and plain TIFF. catscii does not use X11, fonts, colour profiles, AVIF, JPEG 2000 or
  # libtiff.
  slimPillow =
    pillow:
    pillow.overridePythonAttrs {
      buildInputs = [
        pkgs.libjpeg
        pkgs.libwebp
        pkgs.zlib
      ];
      preConfigure = ""; # that of nixpkgs names libraries that are left out
      doCheck = false; # the tests need these libraries
    };

  # What no package imports, as patterns of bash: whole folders, and single modules that are large or that belong to such
  # a folder. A test traces the imports.
  unneeded = [
    # for developers
    "config-* ensurepip idlelib lib2to3 pydoc* test turtle* unittest venv lib-dynload/@(_lsprof|_test|_xx|xx)*"
    "@(bdb|cProfile|cgitb|cmd|code|codeop|doctest|modulefinder|pdb|pickletools|profile|pstats|trace).py"
    # windows, terminals and other systems
    "_pyrepl curses tkinter asyncio/@(proactor|windows)_*"
    "lib-dynload/@(_curses|_tkinter|nis|ossaudiodev|readline|spwd)*"
    # formats and protocols
    "dbm xml xmlrpc zoneinfo lib-dynload/@(_dbm|_elementtree|_gdbm|_zoneinfo|audioop|pyexpat)*"
    "@(aifc|chunk|imghdr|optparse|plistlib|sndhdr|statistics|sunau|tarfile|wave|xdrlib).py"
    "@(cgi|ftplib|imaplib|mailbox|nntplib|poplib|smtpd|smtplib|socketserver|telnetlib|webbrowser).py http/server.py"
    # C from Python, and modules in Python that are also there in C
    "ctypes distutils lib-dynload/@(_crypt|_ctypes)* @(_pydatetime|_pydecimal|_pyio|crypt).py"
    # packages
    "site-packages/PIL/@(_avif|_imagingcms|_imagingft|_imagingtk).*"
    "site-packages/google/!(_upb|protobuf) site-packages/google/protobuf/descriptor_pb2.py"
    "site-packages/opentelemetry/proto/@(logs|metrics|profiles)"
    "site-packages/opentelemetry/sdk/@(_configuration|_logs|metrics)"
    "site-packages/opentelemetry/semconv/_incubating/@(attributes|metrics)/!(__init__|otel_*).py"
    "site-packages/sentry_sdk/integrations/!(${lib.concatStringsSep "|" integrations})"
  ];

  # The integrations of Sentry that catscii uses, and those that they and Sentry itself use.
  integrations = map (name: "${name}.py") [
    "__init__"
    "_wsgi_common"
    "argv"
    "atexit"
    "bottle"
    "dedupe"
    "excepthook"
    "logging"
    "modules"
    "stdlib"
    "threading"
    "wsgi"
  ];

  # The build fails if a file has one of these names.
  denied = [
    "sh"
    "bash"
    "coreutils"
    "gcc"
    "pip"
    "idlelib"
    "tkinter"
    "libX11.so*"
    "libxcb.so*"
    "libtcl*.so*"
    "libtk*.so*"
    "libfreetype.so*"
    "libharfbuzz.so*"
    "libraqm.so*"
    "libavif.so*"
    "libopenjp2.so*"
    "libtiff.so*"
    "libimagequant.so*"
    "liblcms2.so*"
    "libncurses*"
    "libreadline.so*"
    "libgdbm.so*"
  ];

  # All tests that need no network, no web server and no browser, except the tests of the packaging.
  tests.suite = pkgs.runCommand "catscii-tests" { nativeBuildInputs = [ development ]; } ''
    cp ${./catscii.py} catscii.py
    cp ${./bench_catscii.py} bench_catscii.py
    cp ${./requirements.txt} requirements.txt
    cp ${./test_catscii.py} test_catscii.py
    python3 test_catscii.py -m "not nix and not npm and not browser and not cgi and not opencv"
    touch $out
  '';

  # An environment with all packages that the tests need.
  development = python.withPackages (
    ps:
    packages ps
    ++ extras ps
    ++ [
      ps.babel
      ps.hypothesis
      ps.matplotlib
      ps.packaging
      (mmdb-writer ps)
      ps.netaddr
      ps.prometheus-client
      ps.pyte
      ps.pytest
      ps.pytest-timeout
      ps.pytest-xdist
      ps.selenium
      ps.trustme
      ps.wcwidth
      ps.websocket-client
    ]
  );

  # nixpkgs does not have this package.
  mmdb-writer =
    ps:
    ps.buildPythonPackage rec {
      pname = "mmdb_writer";
      version = "0.2.7";
      format = "wheel";
      src = pkgs.fetchPypi {
        inherit pname version format;
        dist = "py3";
        python = "py3";
        hash = "sha256-ruP+KqVWtWkUcRoUpoiQ0vrcA/Hne8WJ14RWUuMKBPg=";
      };
      propagatedBuildInputs = [ ps.netaddr ];
    };
in
install "${python.withPackages packages}/bin/python3"
