//! Errors in configuration files: every message names the file, the line, the key and a correct value.

use super::*;

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
        (
            "[push]\ncolour = 1",
            "roadstead.toml:2: push.colour: unknown key; the keys here are enabled, max_unfinished, max_unfinished_size",
        ),
        ("cache = 5", "roadstead.toml:1: cache: must be a table; write [cache] and its keys below it"),
        ("[cache]\ntag_ttl = ", "roadstead.toml:2: string values must be quoted, expected literal string"),
        // Upstreams.
        (
            "[upstream.\"docker.io\"]\nuser = \"ann\"\n",
            "roadstead.toml:2: upstream.\"docker.io\".user: unknown key; the keys here are url, username, password, \
             password_file, exec, exec_lifetime, docker_config, ca_file, client_cert, client_key, \
             insecure_skip_verify, on_denied, connect_timeout, header_timeout, idle_timeout, min_rate, \
             max_fills, connections, token_realms, private_redirects, credentials",
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
