{
  description = "Cats as coloured ASCII art, over HTTP and in the terminal";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { nixpkgs, ... }:
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
          f pkgs (import ./default.nix { inherit pkgs; })
        );
    in
    {
      packages = eachSystem (
        pkgs: catscii:
        {
          default = catscii;
          bin = catscii;
        }
        // lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux { dockerImage = catscii.image; }
      );

      apps = eachSystem (
        pkgs: catscii: {
          default = {
            type = "app";
            program = lib.getExe catscii;
          };
        }
      );

      checks = eachSystem (pkgs: catscii: catscii.tests);

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

      formatter = eachSystem (pkgs: catscii: pkgs.nixfmt);
    };
}
