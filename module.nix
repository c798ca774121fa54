# The NixOS module: the service and its socket, as docs/deploy.md has them for other systems.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.catscii;
  host = if lib.hasInfix ":" cfg.address then "[${cfg.address}]" else cfg.address;
in
{
  options.services.catscii = {
    enable = lib.mkEnableOption "catscii, which serves cats as coloured ASCII art";
    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./. { };
      defaultText = lib.literalMD "the package of the flake, made with the packages of this system";
      example = lib.literalExpression "pkgs.catscii.override { telemetry = false; }";
      description = "The package of catscii, such as one that the overlay makes.";
    };
    address = mkOption {
      type = types.str;
      default = "127.0.0.1";
      example = "::";
      description = "The address to listen on.";
    };
    port = mkOption {
      type = types.port;
      default = 8080;
      description = "The port to listen on.";
    };
    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether other machines can reach the port.";
    };
    settings = mkOption {
      type = types.attrsOf (types.either types.int types.str);
      default = { };
      example.CLIENT_IP_HEADER = "X-Real-IP";
      description = "Environment variables. All users of the machine can read their values.";
    };
    environmentFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/run/keys/catscii.env";
      description = "A file with more settings, such as keys, one `NAME=VALUE` per line.";
    };
  };

  config = lib.mkIf cfg.enable {
    networking.firewall.allowedTCPPorts = lib.optionals cfg.openFirewall [ cfg.port ];

    systemd.sockets.catscii = {
      description = "The address of catscii";
      wantedBy = [ "sockets.target" ];
      listenStreams = [ "${host}:${toString cfg.port}" ];
    };

    systemd.services.catscii = {
      description = "Cats as coloured ASCII art";
      wants = [ "network-online.target" ];
      requires = [ "catscii.socket" ];
      after = [
        "network-online.target"
        "catscii.socket"
      ];
      wantedBy = [ "multi-user.target" ];
      stopIfChanged = false; # restart it alone, because NixOS stops the socket as well
      environment = {
        ANALYTICS_DB = "/var/lib/catscii/catscii.db";
      }
      // lib.mapAttrs (_: toString) cfg.settings;
      serviceConfig = {
        Type = "notify";
        ExecStart = lib.getExe cfg.package;
        EnvironmentFile = lib.optionals (cfg.environmentFile != null) [ cfg.environmentFile ];
        Restart = "on-failure";
        RestartPreventExitStatus = 2;
        TimeoutStopSec = 15;
        MemoryMax = "512M";

        DynamicUser = true;
        StateDirectory = "catscii";
        StateDirectoryMode = "0700";
        UMask = "0077";
        CapabilityBoundingSet = "";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = true;
        PrivateUsers = true;
        ProcSubset = "pid";
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [
          "@system-service"
          "~@privileged"
        ];
        SystemCallErrorNumber = "EPERM";
      };
    };
  };
}
