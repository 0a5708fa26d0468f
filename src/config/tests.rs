//! Tests of the complete configuration: errors in files, precedence of sources, and the shipped files.

use std::fs;
use std::time::Duration;

use super::*;

fn error(text: &str) -> String {
    Config::from_toml(text, "roadstead.toml").unwrap_err().to_string()
}

fn load(options: LoadOptions, variables: &[(&str, &str)]) -> Result<Config, String> {
    let variables = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Config::load(&options, variables).map_err(|error| error.to_string())
}

#[test]
fn every_config_error_names_file_line_and_key() {
    let cases = [
        // Invalid values.
        (
            "[cache]\n\ntag_ttl = \"60 parsecs\"",
            r#"roadstead.toml:3: cache.tag_ttl: "60 parsecs" is not a duration; write for example "60s" or "10m""#,
        ),
        (
            "[cache]\ntag_ttl = 60",
            r#"roadstead.toml:2: cache.tag_ttl: 60 is not a duration; write for example "60s" or "10m""#,
        ),
        (
            "cache.max_size = \"20 G\"",
            r#"roadstead.toml:1: cache.max_size: "20 G" is not a size; write for example "20GiB" or "500MB""#,
        ),
        (
            "[cache]\nmax_size = \"99999999TiB\"",
            "roadstead.toml:2: cache.max_size: \"99999999TiB\" is too large; the largest size is 16777215TiB",
        ),
        (
            "[cache]\nmax_size = 99999999999999999999",
            "roadstead.toml:2: cache.max_size: 99999999999999999999 is too large; the largest size is 16777215TiB",
        ),
        ("[cache]\nmax_size = 0", "roadstead.toml:2: cache.max_size: must be more than 0"),
        ("[cache]\nanswer_within = \"0s\"", "roadstead.toml:2: cache.answer_within: must be more than 0"),
        (
            "[server]\nlisten = 5000",
            r#"roadstead.toml:2: server.listen: 5000 is not an address to listen on; write for example "127.0.0.1:5000""#,
        ),
        ("[server]\nmax_connections = -1", "roadstead.toml:2: server.max_connections: -1 is not a whole number"),
        ("[server]\nnames = [\"a\", 7]", "roadstead.toml:2: server.names: 7 is not a quoted string"),
        (
            "[server]\nnames = [\"http://a\"]",
            r#"roadstead.toml:2: server.names: "http://a" is not a host; write for example "registry.example.com""#,
        ),
        (
            "[server]\nhost_routes = \"cache.example:5000\"",
            r#"roadstead.toml:2: server.host_routes: "cache.example:5000" is not a domain without a port; write for example "cache.example.com""#,
        ),
        ("[server.tls]\ncert = \"a.pem\"", "roadstead.toml:2: server.tls.cert: is set without key; set key too"),
        (
            "[server.tls]\nclient_ca = \"a.pem\"",
            "roadstead.toml:2: server.tls.client_ca: is set without cert; set cert too",
        ),
        ("[server.tls]\ncerts = \"a.pem\"", r#"roadstead.toml:2: server.tls.certs: unknown key; did you mean "cert"?"#),
        ("[push]\nenabled = \"yes\"", r#"roadstead.toml:2: push.enabled: "yes" is not true or false"#),
        ("[storage]\npath = \"\"", "roadstead.toml:2: storage.path: must not be empty"),
        (
            "[local]\nnamespaces = [\n  \"Team/**\",\n]",
            r#"roadstead.toml:2: local.namespaces: "Team/**" is not a pattern of repository names; write for example "team/**""#,
        ),
        (
            "[log]\nformat = \"xml\"",
            r#"roadstead.toml:2: log.format: "xml" is not a log format; write "text" or "json""#,
        ),
        // Unknown keys and tables.
        ("[cache]\ntag_tll = \"60s\"", r#"roadstead.toml:2: cache.tag_tll: unknown key; did you mean "tag_ttl"?"#),
        ("[caches]\ntag_ttl = \"60s\"", r#"roadstead.toml:1: caches: unknown key; did you mean "cache"?"#),
        ("listen = \":5000\"", r#"roadstead.toml:1: listen: unknown key; did you mean "server.listen"?"#),
        (
            "[server]\ndefault_upstream = \"none\"",
            r#"roadstead.toml:2: server.default_upstream: unknown key; move "default_upstream" above the first table"#,
        ),
        ("[push]\ncolour = 1", "roadstead.toml:2: push.colour: unknown key; the keys here are enabled"),
        ("cache = 5", "roadstead.toml:1: cache: must be a table; write [cache] and its keys below it"),
        ("[cache]\ntag_ttl = ", "roadstead.toml:2: string values must be quoted, expected literal string"),
        // Upstreams.
        (
            "[upstream.\"docker.io\"]\nuser = \"ann\"\n",
            "roadstead.toml:2: upstream.\"docker.io\".user: unknown key; the keys here are url, username, password, \
             password_file, exec, exec_lifetime, docker_config, ca_file, client_cert, client_key, \
             insecure_skip_verify, on_denied, connect_timeout, header_timeout, idle_timeout, min_rate, \
             max_fills, token_realms, private_redirects, credentials",
        ),
        (
            "[upstream.docker.io]\nusername = \"ann\"",
            r#"roadstead.toml:1: upstream.docker.io: the name of an upstream must be quoted; write [upstream."docker.io"]"#,
        ),
        (
            "[upstream.harbor]\nurl = \"https://harbor\"",
            "roadstead.toml:1: upstream.\"harbor\": \"harbor\" contains no \".\" or \":\" and so is not the host of a \
             registry; write for example \"registry.example.com\"",
        ),
        (
            "[upstream.local]",
            "roadstead.toml:1: upstream.\"local\": \"local\" is reserved for pushed images; the name of an upstream \
             contains a \".\" or a \":\"",
        ),
        (
            "[upstream.\"Docker.io\"]",
            r#"roadstead.toml:1: upstream."Docker.io": "Docker.io" has upper case letters; write "docker.io""#,
        ),
        (
            "[upstream.\"index.docker.io\"]",
            "roadstead.toml:1: upstream.\"index.docker.io\": \"index.docker.io\" is another name of \"docker.io\"; \
             write \"docker.io\"",
        ),
        (
            "[upstream.\"a.b\"]\nurl = \"registry.example.com\"",
            r#"roadstead.toml:2: upstream."a.b".url: "registry.example.com" has no scheme; write "https://registry.example.com""#,
        ),
        (
            "[upstream.\"a.b\"]\nusername = \"ann\"",
            "roadstead.toml:2: upstream.\"a.b\".username: is set without a password; set password, \
             password_file or exec too",
        ),
        (
            "[upstream.\"a.b\"]\npassword = \"x\"",
            r#"roadstead.toml:2: upstream."a.b".password: is set without username; set username too"#,
        ),
        (
            "[upstream.\"a.b\"]\nusername = \"ann\"\npassword = \"x\"\npassword_file = \"/x\"",
            "roadstead.toml:4: upstream.\"a.b\".password_file: password is set as well; keep one of the two",
        ),
        (
            "[upstream.\"a.b\"]\nusername = \"ann\"\npassword_file = \"/nonexistent\"",
            "roadstead.toml:3: upstream.\"a.b\".password_file: \"/nonexistent\" cannot be read: No such file or \
             directory (os error 2)",
        ),
        (
            "[upstream.\"a.b\"]\nca_file = \"/nonexistent\"",
            "roadstead.toml:2: upstream.\"a.b\".ca_file: \"/nonexistent\" cannot be read: No such file or directory \
             (os error 2)",
        ),
        (
            "[upstream.\"a.b\"]\nusername = \"ann\"\nexec = []",
            r#"roadstead.toml:3: upstream."a.b".exec: is empty; write the program and its arguments"#,
        ),
        (
            "[upstream.\"a.b\"]\nexec_lifetime = \"1h\"",
            r#"roadstead.toml:2: upstream."a.b".exec_lifetime: is set without exec; set exec too, or remove it"#,
        ),
        (
            "[upstream.\"a.b\"]\nusername = \"ann\"\nexec = [\"x\"]\npassword = \"y\"",
            r#"roadstead.toml:3: upstream."a.b".exec: password is set as well; keep one of the two"#,
        ),
        (
            "[upstream.\"a.b\"]\nusername = \"ann\"\ndocker_config = \"/x\"",
            r#"roadstead.toml:2: upstream."a.b".username: cannot be combined with docker_config, which contains user names; remove one of the two"#,
        ),
        (
            "docker_config = \"/nonexistent\"",
            "roadstead.toml:1: docker_config: \"/nonexistent\" cannot be read: No such file or directory (os error 2)",
        ),
        (
            "[upstream.\"a.b\"]\ncredentials = \"x\"",
            "roadstead.toml:2: upstream.\"a.b\".credentials: must be a list of tables; write \
             [[upstream.\"a.b\".credentials]] and the keys of one rule below it",
        ),
        (
            "[[upstream.\"a.b\".credentials]]\nusername = \"ann\"\npassword = \"x\"",
            r#"roadstead.toml:1: upstream."a.b".credentials: has no repository; write for example repository = "org/**""#,
        ),
        (
            "[[upstream.\"a.b\".credentials]]\nrepository = \"org/**\"",
            "roadstead.toml:1: upstream.\"a.b\".credentials: has no credentials; write username and password, \
             password_file or exec, or docker_config",
        ),
        (
            "[[upstream.\"a.b\".credentials]]\nrepository = \"Org\"",
            r#"roadstead.toml:2: upstream."a.b".credentials.repository: "Org" is not a pattern of repository names; write for example "team/**""#,
        ),
        (
            "[upstream.\"a.b\"]\nurl = \"https://a.b\"\nclient_cert = \"/dev/null\"",
            r#"roadstead.toml:3: upstream."a.b".client_cert: is set without client_key; set client_key too"#,
        ),
        (
            "\n[upstream.\"a.b\"]",
            r#"roadstead.toml:2: upstream."a.b": has no url; write for example url = "https://a.b""#,
        ),
        (
            "[upstream.\"a.b\"]\nurl = []",
            r#"roadstead.toml:2: upstream."a.b".url: is an empty list; write at least one URL"#,
        ),
        // Rules between tables.
        (
            "builtin_upstreams = false\ndefault_upstream = \"docker.io\"\n[upstream.\"a.b\"]\nurl = \"http://a.b\"",
            r#"roadstead.toml:2: default_upstream: no upstream is called "docker.io"; use "a.b" or "none""#,
        ),
        (
            "builtin_upstreams = false",
            "roadstead.toml:1: builtin_upstreams: \"docker.io\" is not configured without them; set default_upstream to \
             \"none\" or to a configured upstream",
        ),
        (
            "default_upstream = \"index.docker.io\"",
            r#"roadstead.toml:1: default_upstream: "index.docker.io" is another name of "docker.io"; write "docker.io""#,
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(error(text), expected, "{text}");
    }
}

#[test]
fn an_error_never_repeats_a_password() {
    for text in [
        "[upstream.\"a.b\"]\nurl = \"https://ann:hunter2@a.b\"",
        "[upstream.\"a.b\"]\nusername = \"ann\"\npassword = [\"hunter2\"]",
    ] {
        assert!(!error(text).contains("hunter2"));
    }
}

#[test]
fn table_changes_one_builtin_upstream_only() {
    let text = "[upstream.\"docker.io\"]\nusername = \"ann\"\npassword = \"x\"\nidle_timeout = \"5s\"";
    let config = Config::from_toml(text, "test").unwrap();
    assert_eq!(config.upstreams.len(), BUILTIN_UPSTREAMS.len());
    let docker = config.upstream(DOCKER_IO).unwrap();
    assert_eq!(docker.urls[0].as_str(), "https://registry-1.docker.io/");
    assert_eq!(docker.idle_timeout, Duration::from_secs(5));
    assert_eq!(docker.connect_timeout, Duration::from_secs(3));
    assert!(docker.has_credentials());
    assert!(!config.upstream("quay.io").unwrap().has_credentials());
}

#[test]
fn password_file_must_contain_a_password() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "hunter2\n").unwrap();
    let text = format!("[upstream.\"docker.io\"]\nusername = \"ann\"\npassword_file = \"{}\"", file.display());
    let config = Config::from_toml(&text, "test").unwrap();
    let source = CredentialSource::File { username: "ann".to_owned(), path: file.clone() };
    assert_eq!(config.upstream(DOCKER_IO).unwrap().credentials, [CredentialConfig::new(source)]);
    fs::write(&file, "\nhunter2\n").unwrap();
    assert!(error(&text).ends_with("is empty"), "{}", error(&text));
}

#[test]
fn sources_have_their_precedence() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("roadstead.toml");
    fs::write(&file, "[server]\nlisten = \":1\"\n[upstream.\"docker.io\"]\nusername = \"f\"\npassword_file = \"/x\"")
        .unwrap();
    let ours = ("ROADSTEAD_SERVER__LISTEN", ":3");
    let theirs = ("REGISTRY_HTTP_ADDR", ":2");
    let password = ("ROADSTEAD_UPSTREAM__DOCKER_IO__PASSWORD", "replaces the file");
    let port = |listen: Option<&str>, variables: &[(&str, &str)]| {
        let options =
            LoadOptions { config: Some(file.clone()), listen: listen.map(str::to_owned), ..LoadOptions::default() };
        load(options, &[variables, &[password]].concat()).unwrap().server.listen.port()
    };
    assert_eq!(port(None, &[]), 1);
    assert_eq!(port(None, &[theirs]), 2);
    assert_eq!(port(None, &[theirs, ours]), 3);
    assert_eq!(port(Some(":4"), &[theirs, ours]), 4);
}

#[test]
fn named_config_file_must_exist() {
    let expected = "/nonexistent.toml: cannot be read: No such file or directory (os error 2)";
    let options = LoadOptions { config: Some("/nonexistent.toml".into()), ..LoadOptions::default() };
    assert_eq!(load(options, &[]), Err(expected.to_owned()));
    assert_eq!(load(LoadOptions::default(), &[("ROADSTEAD_CONFIG", "/nonexistent.toml")]), Err(expected.to_owned()));
}

#[test]
fn variables_can_configure_upstreams_of_flags() {
    let options = LoadOptions {
        upstreams: vec!["a.b:5000=http://one".to_owned(), "a.b:5000=http://two".to_owned()],
        default_upstream: Some("a.b:5000".to_owned()),
        data: Some("/data".into()),
        log_format: Some("json".to_owned()),
        ..LoadOptions::default()
    };
    let variables =
        [("ROADSTEAD_UPSTREAM__A_B_5000__USERNAME", "ann"), ("ROADSTEAD_UPSTREAM__A_B_5000__PASSWORD", "x")];
    let config = load(options, &variables).unwrap();
    let upstream = config.upstream("a.b:5000").unwrap();
    assert_eq!(upstream.urls.iter().map(|url| url.as_str()).collect::<Vec<_>>(), ["http://one/", "http://two/"]);
    assert_eq!(upstream.credentials, [CredentialConfig::new(CredentialSource::password("ann", "x"))]);
    assert_eq!(config.default_upstream.as_deref(), Some("a.b:5000"));
    assert_eq!(config.storage.path.to_str(), Some("/data"));
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn errors_name_the_flag() {
    let cases = [
        (
            LoadOptions { listen: Some("5000".to_owned()), ..LoadOptions::default() },
            r#"--listen: "5000" is not an address to listen on; write for example "127.0.0.1:5000""#,
        ),
        (
            LoadOptions { upstreams: vec!["a.b".to_owned()], ..LoadOptions::default() },
            r#"--upstream: "a.b" is not NAME=URL; write for example registry.example.com=https://registry.example.com"#,
        ),
        (
            LoadOptions { upstreams: vec!["a.b=a.b".to_owned()], ..LoadOptions::default() },
            r#"--upstream: "a.b" has no scheme; write "https://a.b""#,
        ),
        (
            LoadOptions { upstreams: vec!["local=http://a".to_owned()], ..LoadOptions::default() },
            r#"--upstream: "local" is reserved for pushed images; the name of an upstream contains a "." or a ":""#,
        ),
    ];
    for (options, expected) in cases {
        assert_eq!(load(options, &[]), Err(expected.to_owned()));
    }
}

#[test]
fn variables_of_k3d_make_a_mirror_of_docker_hub() {
    let variables = [
        ("REGISTRY_HTTP_ADDR", "0.0.0.0:5000"),
        ("REGISTRY_PROXY_REMOTEURL", "https://registry-1.docker.io"),
        ("REGISTRY_PROXY_USERNAME", "ann"),
        ("REGISTRY_PROXY_PASSWORD", "hunter2"),
        ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "/var/lib/registry"),
        ("REGISTRY_STORAGE_DELETE_ENABLED", "true"),
        ("REGISTRY_LOG_LEVEL", "info"),
    ];
    let config = load(LoadOptions::default(), &variables).unwrap();
    assert_eq!(config.server.listen.to_string(), "0.0.0.0:5000");
    assert_eq!(config.default_upstream.as_deref(), Some(DOCKER_IO));
    let credentials = &config.upstream(DOCKER_IO).unwrap().credentials;
    assert_eq!(*credentials, [CredentialConfig::new(CredentialSource::password("ann", "hunter2"))]);
    assert_eq!(config.storage.path.to_str(), Some("/var/lib/registry"));
    assert!(config.deletes_enabled());
    assert_eq!(config.ignored_settings.others, ["REGISTRY_LOG_LEVEL"]);
}

/// The configuration file in the `registry:2` image, with further settings.
const REGISTRY_YAML: &str = r#"
version: 0.1
log:
  level: debug
  formatter: logstash
  fields:
    service: registry
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: /var/lib/registry
  delete:
    enabled: true
http:
  addr: :5000
  tls:
    certificate: /certs/tls.crt
    key: /certs/tls.key
    clientcas:
      - /certs/ca.pem
  headers:
    X-Content-Type-Options: [nosniff]
proxy:
  remoteurl: https://registry-1.docker.io
  username: ann
  password: 'hunter2'
"#;

#[test]
fn registry_2_file_is_read_below_its_variables() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    let load_file = |text: &str, variables: &[(&str, &str)]| {
        fs::write(&path, text).unwrap();
        load(LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() }, variables)
    };
    let config =
        load_file(REGISTRY_YAML, &[("REGISTRY_PROXY_USERNAME", "bob"), ("REGISTRY_HTTP_SECRET", "x")]).unwrap();
    assert_eq!(config.server.listen.to_string(), ":5000");
    let tls = config.server.tls.as_ref().unwrap();
    assert_eq!(tls.cert.to_str(), Some("/certs/tls.crt"));
    assert_eq!(tls.client_ca.as_ref().and_then(|path| path.to_str()), Some("/certs/ca.pem"));
    assert_eq!(config.storage.path.to_str(), Some("/var/lib/registry"));
    assert_eq!(config.default_upstream.as_deref(), Some(DOCKER_IO));
    let hub = config.upstream(DOCKER_IO).unwrap();
    let [CredentialConfig { source: CredentialSource::Password { username, password }, .. }] = &hub.credentials[..]
    else {
        panic!("one login: {:?}", hub.credentials);
    };
    assert_eq!((username.as_str(), password.expose()), ("bob", "hunter2"));
    assert!(config.deletes_enabled());
    assert_eq!(config.log.format, LogFormat::Json);
    let file = path.display();
    let ignored = ["http.headers.X-Content-Type-Options.0", "log.fields.service", "log.level"];
    let mut ignored: Vec<String> = ignored.iter().map(|key| format!("{file}: {key}")).collect();
    ignored.insert(1, "REGISTRY_HTTP_SECRET".to_owned());
    ignored.push(format!("{file}: storage.cache.blobdescriptor"));
    assert_eq!(config.ignored_settings.others, ignored);

    for (text, expected) in [
        (
            "http: {addr: 5000}",
            r#": http.addr: "5000" is not an address to listen on; write for example "127.0.0.1:5000""#,
        ),
        ("proxy: {remoteurl: docker.io}", r#": proxy.remoteurl: "docker.io" has no scheme; write "https://docker.io""#),
        ("- a", ": is not a configuration file of registry:2"),
    ] {
        assert_eq!(load_file(text, &[]), Err(format!("{file}{expected}")));
    }
    let error = load_file("http: {addr: ':5000'", &[]).unwrap_err();
    assert!(error.starts_with(&format!("{file}: ")) && !error.contains('\n'), "{error}");
    fs::remove_file(&path).unwrap();
    let options = LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() };
    assert!(load(options, &[]).unwrap_err().contains("cannot be read"));
}

#[test]
fn registry_2_password_is_read_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    for (written, meant) in [
        ("0123", "0123"),
        ("'0123'", "0123"),
        ("1e3", "1e3"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("yes", "yes"),
        ("True", "True"),
        ("1.0", "1.0"),
        ("2026-11-21", "2026-11-21"),
        ("\"a\\tb\"", "a\tb"),
        ("*again", "ann"),
    ] {
        let text = format!(
            "version: 0.1\nstorage: {{delete: {{enabled: yes}}}}\nproxy:\n  remoteurl: https://ghcr.io\n  \
             username: &again ann\n  password: {written}\n"
        );
        fs::write(&path, text).unwrap();
        let options = LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() };
        let config = load(options, &[]).unwrap();
        let expected = CredentialConfig::new(CredentialSource::password("ann", meant));
        assert_eq!(config.upstream("ghcr.io").unwrap().credentials, [expected], "{written}");
        assert_eq!(config.delete.enabled, Some(true));
    }
}

#[test]
fn registry_2_file_errors_never_repeat_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    for (lines, place) in [
        ("password: hunter2\n  password: hunter3", "contains a key twice, at line 5 column 3"),
        ("password: \"hunter2", "line"),
        ("password: hunter2\n hunter3: x", "line"),
        ("password: *hunter2", "line 4 column 13"),
        ("password: [hunter2", "line"),
        ("password: {hunter2", "line"),
        ("password: !!int hunter2", "line"),
        ("password: hunter2\n  <<: hunter3", "line"),
        ("password: hunter2\n\0", "line"),
        ("? [hunter2]\n  : x", "line"),
    ] {
        fs::write(&path, format!("version: 0.1\nproxy:\n  username: ann\n  {lines}\n")).unwrap();
        let options = LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() };
        let error = load(options, &[]).err().unwrap_or_default();
        assert!(error.contains(place) && !error.contains("hunter"), "{lines}: {error}");
    }
}

#[test]
fn ignored_registry_2_logins_give_their_own_warning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    fs::write(&path, "auth: {htpasswd: {realm: x, path: /etc/htpasswd}}\nlog: {level: info}").unwrap();
    let options = LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() };
    let warnings = load(options, &[("REGISTRY_AUTH_TOKEN_REALM", "https://x")]).unwrap().warnings();
    for named in ["auth.htpasswd.realm", "auth.htpasswd.path", "REGISTRY_AUTH_TOKEN_REALM"] {
        assert!(warnings[0].starts_with("clients do not log in here") && warnings[0].contains(named), "{warnings:?}");
    }
    let others = warnings.iter().find(|warning| warning.contains("log.level")).unwrap();
    assert!(!others.contains("auth"), "{others}");
}

#[test]
fn registry_2_readonly_mode_disables_pushes_and_deletes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    for (enabled, writable) in [("true", false), ("false", true)] {
        let text = format!(
            "storage: {{delete: {{enabled: true}}, maintenance: {{readonly: {{enabled: {enabled}}}}}}}\nhttp: {{}}"
        );
        fs::write(&path, text).unwrap();
        let options = LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() };
        let config = load(options, &[]).unwrap();
        assert_eq!((config.push.enabled, config.deletes_enabled()), (writable, writable));
        assert_eq!(config.ignored_settings.others, [""; 0]);
    }
}

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
