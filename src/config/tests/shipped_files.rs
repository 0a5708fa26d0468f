//! The configuration files in `config/`: the reference and the examples.

use super::*;

/// The reference file with its comment marks removed. `keys` removes the mark of a line.
fn reference(keys: impl Fn(&str) -> Option<&str>) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/roadstead.toml");
    let text = fs::read_to_string(path).unwrap();
    let line = |line: &str| {
        keys(line).filter(|rest| !rest.is_empty() && !rest.starts_with([' ', '#'])).unwrap_or("").to_owned()
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn reference_file_shows_every_key_at_its_default() {
    let defaults = reference(|line| line.strip_prefix('#'));
    assert_eq!(Config::from_toml(&defaults, "config/roadstead.toml"), Ok(Config::default()));

    let everything = reference(|line| line.strip_prefix("##").or_else(|| line.strip_prefix('#')));
    let document: toml::Table = toml::from_str(&everything).unwrap();
    let shown = |table: &toml::Table, keys: &[&str]| keys.iter().all(|key| table.contains_key(*key));
    for (section, key) in layer::fixed_keys() {
        let names = section.split('.').filter(|name| !name.is_empty());
        let table = names.fold(&document, |table, name| table[name].as_table().unwrap());
        assert!(shown(table, &[key]), "{section}.{key} is missing");
    }
    let upstream = document["upstream"][DOCKER_IO].as_table().unwrap();
    let keys = layer::Section::keys(&layer::UpstreamKeys::default());
    assert!(shown(upstream, &keys), "{upstream:?} is not {keys:?}");
}

#[test]
fn examples_are_valid_except_for_the_files_they_name() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/config/examples");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let here = |key: &str| format!("{key} = \"{}\"", path.display());
        let text = text
            .replace("password_file = \"/run/secrets/docker.io\"", &here("password_file"))
            .replace("ca_file = \"/etc/ssl/example-ca.pem\"", &here("ca_file"));
        assert_eq!(Config::from_toml(&text, "example").err(), None, "{}", path.display());
    }
}
