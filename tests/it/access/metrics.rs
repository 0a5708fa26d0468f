//! Who may read `/metrics`.

use super::{Access, CLOSED, RULES, basic, bearer, login};

const GUARDED: &str = "[[auth.rule]]\nwho = [\"bob\"]\nmay = [\"metrics\"]\n[metrics]\nauth = true\n";

#[tokio::test]
async fn metrics_need_a_right_and_health_checks_do_not() {
    let access = Access::start(&format!("{RULES}{GUARDED}")).await;
    let host = access.server.addr().to_string();
    let realm =
        format!("Bearer realm=\"http://{host}/auth/token\",service=\"{host}\",scope=\"registry:metrics:metrics\"");
    for (authorization, status, error) in [
        (String::new(), 401, ""),
        ("Basic Og==".to_owned(), 401, ""),
        (basic("bob", "wrong"), 401, ""),
        ("Bearer x".to_owned(), 401, ",error=\"invalid_token\""),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = access.send(method, "/metrics", &authorization).await;
            assert_eq!(answer.status, status, "{method} {authorization}");
            assert_eq!(answer.header("www-authenticate"), format!("{realm}{error}"), "{authorization}");
            assert!(!answer.text().contains("roadstead_"));
        }
    }
    let denied = access.send("GET", "/metrics", &login("admin")).await;
    assert_eq!((denied.status, denied.error_code().as_str()), (403, "DENIED"));
    let read = access.send("GET", "/metrics", &login("bob")).await;
    assert!(read.status == 200 && read.text().contains("roadstead_auth_denied_total{action=\"metrics\"} 1"));
    for (scope, status) in [("registry:metrics:metrics", 200), ("registry:x:*", 200), ("repository:a:pull", 401)] {
        let token = bearer(&access.send("GET", &format!("/auth/token?scope={scope}"), &login("bob")).await);
        assert_eq!(access.get("/metrics", &token).await.status, status, "{scope}");
    }
    for path in ["/healthz", "/readyz", "/"] {
        for authorization in ["", "Bearer x", "Basic x"] {
            assert_eq!(access.send("GET", path, authorization).await.status, 200, "{path}");
        }
    }
    assert_eq!(access.send("POST", "/metrics", "").await.status, 405);
}

#[tokio::test]
async fn metrics_are_open_unless_that_is_wanted() {
    let access = Access::start(CLOSED).await;
    for authorization in ["", "Bearer x", "Basic x"] {
        assert_eq!(access.send("GET", "/metrics", authorization).await.status, 200);
    }
    let everyone = "[[auth.rule]]\nwho = [\"anonymous\"]\nmay = [\"metrics\"]\n[metrics]\nauth = true\n";
    let access = Access::start(&format!("{RULES}{everyone}")).await;
    assert_eq!(access.send("GET", "/metrics", "").await.status, 200);
}

#[tokio::test]
async fn metrics_that_nobody_could_read_stop_the_start() {
    let error = |toml: &str| roadstead::config::Config::from_toml(toml, "test").unwrap_err().to_string();
    assert!(error("[metrics]\nauth = true").contains("without [auth]"));
    let users = "default_upstream = \"none\"\n[auth]\nhtpasswd = \"/dev/null\"\n";
    let no_rule = error(&format!("{users}{CLOSED}[metrics]\nauth = true"));
    assert!(no_rule.contains("test:10: metrics.auth: is true, and no rule gives the right"), "{no_rule}");
    let no_on = error(&format!("{users}[[auth.rule]]\nwho = \"ann\"\nmay = [\"metrics\", \"pull\"]"));
    assert!(no_on.contains("has no on"), "{no_on}");
}
