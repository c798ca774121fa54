{
  description = "Cats as coloured ASCII art, over HTTP and in the terminal";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "x86_64-darwin"
        "aarch64-darwin"
      ];
      eachSystem =
        f:
        lib.genAttrs systems (
          system:
          let
            pkgs = nixpkgs.legacyPackages.${system};
          in
          f pkgs (pkgs.callPackage ./. { })
        );
    in
    {
      packages = eachSystem (
        pkgs: catscii:
        {
          default = catscii;
          bin = catscii;
        }
        // lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
          dockerImage = catscii.image; # a program that writes an archive
          dockerArchive = pkgs.runCommand "catscii.tar" { } "${catscii.image} > $out"; # the archive
        }
      );

      overlays.default = final: prev: { catscii = final.callPackage ./. { }; };

      nixosModules.default = ./module.nix;

      apps = eachSystem (
        pkgs: catscii: {
          default = {
            type = "app";
            program = lib.getExe catscii;
          };
        }
      );

      checks = eachSystem (
        pkgs: catscii:
        catscii.tests
        // lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
          module = pkgs.testers.runNixOSTest {
            name = "catscii";
            nodes.machine = {
              imports = [ self.nixosModules.default ];
              services.catscii.enable = true;
              services.catscii.settings.CAT_SOURCES = "";
            };
            testScript = ''
              machine.wait_for_unit("catscii.service")
              machine.succeed("curl --fail --silent --show-error localhost:8080/cat/house-1")
              machine.succeed("systemctl stop catscii.service")
              machine.succeed("curl --fail --silent --show-error localhost:8080/health") # the socket starts it again
              machine.succeed("systemctl is-active catscii.service")
            '';
          };
        }
      );

      devShells = eachSystem (
        pkgs: catscii: {
          default = pkgs.mkShell {
            packages = [
              catscii.development
              pkgs.dive
              pkgs.flyctl
              pkgs.just
              pkgs.nixfmt
              pkgs.skopeo
              pkgs.uv
            ];
            GEOLITE2_COUNTRY_DB = pkgs.dbip-country-lite.mmdb;
          };
        }
      );

      formatter = eachSystem (pkgs: catscii: pkgs.nixfmt-tree);
    };
}
