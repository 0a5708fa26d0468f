//! Settings without effect, and what is said about them.

use super::*;

const GIB: u64 = 1 << 30;

fn found(text: &str, disk_bytes: Option<u64>) -> Vec<String> {
    let config = Config::from_toml(text, "test").unwrap_or_else(|error| panic!("{error}: {text}"));
    config.ineffective_settings(disk_bytes)
}

/// Each of these settings gives one warning, which names it and has this remedy.
#[test]
fn settings_without_effect_are_named_with_a_remedy() {
    let cases = [
        (
            "[upstream.\"a.b\"]\nurl = \"https://a.b\"\nheader_timeout = \"30s\"",
            "header_timeout is 30s",
            "such as \"8s\"",
        ),
        (
            "[upstream.\"a.b\"]\nurl = \"https://a.b\"\nconnect_timeout = \"1m\"",
            "connect_timeout is 1m",
            "such as \"3s\"",
        ),
        ("[upstream.\"a.b\"]\nurl = \"https://a.b\"\nmax_fills = 100", "max_fills is 100", "raise cache.max_fills"),
        (
            "[upstream.\"docker.io\"]\nurl = \"https://docker.io\"",
            "https://docker.io/ is not",
            "write \"https://registry-1.docker.io\"",
        ),
        (
            "[upstream.\"docker.io\"]\nurl = \"https://index.docker.io\"",
            "https://index.docker.io/ is not",
            "write \"https://registry-1.docker.io\"",
        ),
        (
            "[upstream.\"docker.io\"]\nurl = \"http://hub.docker.com/\"",
            "http://hub.docker.com/ is not",
            "write \"https://registry-1.docker.io\"",
        ),
        (
            "[upstream.\"ghcr.io\"]\nurl = \"https://github.com\"",
            "https://github.com/ is not",
            "write \"https://ghcr.io\"",
        ),
        (
            "[upstream.\"a.b\"]\nurl = [\"https://a.b\", \"https://c.d/x\", \"https://c.d/x/\"]",
            "https://c.d/x/ twice",
            "remove it",
        ),
        ("[upstream.\"a.b\"]\nurl = \"http://a.b\"\nca_file = \"/dev/null\"", "ca_file has no effect", "https URL"),
        (
            "[upstream.\"a.b\"]\nurl = \"http://a.b\"\ninsecure_skip_verify = true",
            "insecure_skip_verify has no effect",
            "https URL",
        ),
        (
            "[upstream.\"a.b\"]\nurl = \"https://a.b\"\ninsecure_skip_verify = true\nca_file = \"/dev/null\"",
            "ca_file has no effect",
            "remove insecure_skip_verify",
        ),
        (
            "[upstream.\"a.example\"]\nurl = \"https://r.a.example\"\ntoken_realms = [\"auth.a.example\"]\n\
             username = \"u\"\npassword = \"p\"",
            "token_realms \"auth.a.example\"",
            "remove it",
        ),
        (
            "[upstream.\"mirror.example\"]\nurl = \"https://ghcr.io/\"",
            "\"ghcr.io\" and upstream.\"mirror.example\"",
            "keep one",
        ),
        ("[cache]\npin = [\"qay.io/a/b:*\"]", "cache.pin \"qay.io/a/b:*\"", "check the host"),
        (
            "[cache]\npin = [\"docker.io/alpine:3.*\"]",
            "cache.pin \"docker.io/alpine:3.*\"",
            "write \"docker.io/library/alpine:3.*\"",
        ),
        (
            "[cache]\npin = [\"docker.io/Library/X:V1\"]",
            "cache.pin \"docker.io/Library/X:V1\" pins nothing",
            "write \"docker.io/library/x:V1\"",
        ),
        (
            "[cache]\npin = [\"index.docker.io/library/x\"]",
            "index.docker.io is another name of docker.io",
            "write \"docker.io/library/x\"",
        ),
        ("[server]\nnames = [\"*.example\"]", "server.names \"*.example\"", "write each name of this server"),
        (
            "[upstream.\"ghcr.io\"]\ntoken_realms = [\"auth.example\"]",
            "token_realms has no effect",
            "configure them, or remove it",
        ),
        (
            "[upstream.\"docker.io\"]\nurl = \"http://www.docker.io\"",
            "http://www.docker.io/ is not",
            "write \"https://registry-1.docker.io\"",
        ),
        (
            "[upstream.\"quay.io\"]\nurl = \"https://www.quay.io\"",
            "https://www.quay.io/ is not",
            "write \"https://quay.io\"",
        ),
        (
            "[upstream.\"a.b\"]\nurl = [\"https://a.b\", \"https://c.d\", \"https://e.f\"]\nheader_timeout = \"19s\"",
            "header_timeout is 19s, but of cache.answer_within (20s) the first of 3 URLs",
            "such as \"3s\"",
        ),
        ("[local]\nnamespaces = [\"**\"]", "local.namespaces \"**\"", "a narrower pattern"),
        ("[local]\nnamespaces = [\"team/**\", \"library/*\"]", "local.namespaces \"library/*\"", "a narrower pattern"),
        ("[local]\nnamespaces = [\"ghcr.io/team/**\"]", "local.namespaces \"ghcr.io/team/**\"", "remove the host"),
        ("[server]\nnames = [\"quay.io\"]", "server.names contains \"quay.io\"", "remove one"),
        ("[cache]\ntag_ttl = \"0s\"\nstale_while_revalidate = \"1m\"", "cache.stale_while_revalidate", "set tag_ttl"),
        ("[cache]\nstale_if_error = \"30s\"", "cache.stale_if_error (30s)", "such as \"30d\""),
        ("[cache]\nmax_size = \"200MiB\"", "cache.max_size is 200MiB", "some GiB"),
        ("[gc]\ninterval = \"0s\"\nuntagged_after = \"90d\"", "gc.interval is 0s", "such as \"6h\""),
        ("[scrub]\ninterval = \"0s\"\nrate = \"1MiB\"", "scrub.rate has no effect", "such as \"30d\""),
        ("[storage]\nread_only = true\n[delete]\nenabled = true", "delete.enabled has no effect", "remove it"),
    ];
    for (text, named, remedy) in cases {
        let warnings = found(text, None);
        assert_eq!(warnings.len(), 1, "{text}: {warnings:#?}");
        assert!(
            warnings[0].contains(named) && warnings[0].ends_with(remedy) | warnings[0].contains(remedy),
            "{warnings:?}"
        );
    }
}

#[test]
fn settings_with_an_effect_are_not_named() {
    for text in [
        "",
        "[upstream.\"docker.io\"]\nurl = [\"https://mirror.example.com\", \"https://registry-1.docker.io\"]",
        "[upstream.\"a.b\"]\nurl = \"https://a.b\"\nheader_timeout = \"19s\"\nconnect_timeout = \"10s\"\nca_file = \"/dev/null\"",
        "[cache]\nanswer_within = \"5s\"",
        "[cache]\npin = [\"docker.io/**\", \"docker.io/library/*\", \"*/team/app\"]\nstale_if_error = \"0s\"",
        "[local]\nnamespaces = [\"team/**\"]",
        "[server]\nnames = [\"cache.example.com\"]",
        "[gc]\ninterval = \"0s\"",
        "[upstream.\"a.example\"]\nurl = \"https://a.example\"\ntoken_realms = [\"auth.b.example\"]\nusername = \"u\"\npassword = \"p\"",
        "[upstream.\"a.b\"]\nurl = [\"https://a.b\", \"https://www.c.d\"]\nheader_timeout = \"9s\"",
        "[upstream.\"a.b\"]\nurl = [\"https://a.b\", \"https://c.d\", \"https://e.f\"]",
        "[cache]\npin = [\"docker.io/library/x:V1\", \"docker.io/{Library,library}/x\"]",
        "[push]\nmax_unfinished_size = \"90GiB\"",
    ] {
        assert_eq!(found(text, Some(100 * GIB)), [""; 0], "{text}");
    }
}

#[test]
fn a_credential_rule_after_a_wider_one_is_named() {
    let rules = |patterns: &[&str], own: bool| {
        let own = if own { "username = \"u\"\npassword = \"p\"\n" } else { "" };
        let mut text = format!("[upstream.\"docker.io\"]\n{own}");
        for pattern in patterns {
            text += "[[upstream.\"docker.io\".credentials]]\n";
            text += &format!("repository = \"{pattern}\"\nusername = \"u\"\npassword = \"p\"\n");
        }
        found(&text, None)
    };
    for (patterns, own, named) in [
        (&["org/**", "org/app"][..], false, Some("\"org/app\" is never used, because \"org/**\"")),
        (&["org/**", "org/team/*"], false, Some("\"org/team/*\" is never used")),
        (&["**", "org/app"], false, Some("\"org/app\" is never used, because \"**\"")),
        (&["org/*", "org/*"], false, Some("\"org/*\" is never used")),
        (&["org/*", "org/app"], false, Some("\"org/app\" is never used")),
        (&["**"], true, Some("of its own table is never used")),
        (&["docker.io/org/**"], false, Some("write \"org/**\"")),
        (&["org/app", "org/**"], true, None),
        (&["org/*", "org/a/b"], false, None),
        (&["org/**", "other/**"], true, None),
    ] {
        let warnings = rules(patterns, own);
        match named {
            Some(named) => {
                assert!(warnings.len() == 1 && warnings[0].contains(named), "{patterns:?}: {warnings:?}")
            }
            None => assert_eq!(warnings, [""; 0], "{patterns:?}"),
        }
    }
}

#[test]
fn sizes_that_the_file_system_does_not_have_are_named() {
    let cases = [
        ("[cache]\nmin_free = \"2GiB\"", GIB, Some("cache.min_free is 2GiB, but")),
        ("[cache]\nmin_free = \"1GiB\"", GIB, Some("nothing is cached and every push is refused")),
        ("[cache]\nmax_size = \"100GiB\"", 50 * GIB, Some("cache.max_size is 100GiB, but")),
        ("[cache]\nmax_size = \"49GiB\"", 50 * GIB, Some("so max_size has no effect")),
        ("[cache]\nmax_size = \"40GiB\"\nmin_free = \"5GiB\"", 50 * GIB, None),
        ("", GIB, None),
        ("[push]\nmax_unfinished_size = \"90GiB\"", 50 * GIB, Some("push.max_unfinished_size is 90GiB, but")),
        ("[push]\nmax_unfinished_size = \"40GiB\"", 50 * GIB, None),
    ];
    for (text, disk, named) in cases {
        let warnings = found(text, Some(disk));
        match named {
            Some(named) => assert!(warnings.len() == 1 && warnings[0].contains(named), "{text}: {warnings:?}"),
            None => assert_eq!(warnings, [""; 0], "{text}"),
        }
    }
}
