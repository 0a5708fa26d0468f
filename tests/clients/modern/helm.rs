//! Helm pushes charts, and pulls them by exact versions and by ranges.

use super::scene::pushed_and_mirror;
use super::tool::Tool;
use crate::clients::folder::Folder;
use crate::clients::login::{PASSWORD, with_users};
use crate::support::process::ServerProcess;

/// Packs a chart in this version and pushes it.
fn push_chart(helm: &Tool, server: &ServerProcess, version: &str) {
    helm.run(&["push", "--plain-http", &packed(helm, version), &format!("oci://{}/charts", server.host())]);
}

/// The file of a chart in this version.
fn packed(helm: &Tool, version: &str) -> String {
    helm.home.write("app/Chart.yaml", "apiVersion: v2\nname: app\nversion: 0.0.0\n");
    helm.home.write("app/templates/map.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: made-by-helm\n");
    helm.run(&["package", &helm.home.at("app"), "--version", version, "--destination", &helm.home.at("packed")]);
    helm.home.at(&format!("packed/app-{version}.tgz"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn helm_pulls_charts_by_version_and_range() {
    let (helm, (pushed, mirror)) = (Tool::new("helm"), pushed_and_mirror());
    for version in ["1.0.0", "1.2.0+build.5", "2.0.0-rc.1"] {
        push_chart(&helm, &pushed, version);
    }
    for chart in [format!("oci://{}/charts/app", pushed.host()), format!("oci://{}/ghcr.io/charts/app", mirror.host())]
    {
        for (wanted, version) in
            [("1.0.0", "1.0.0"), ("1.2.0+build.5", "1.2.0+build.5"), ("^1.0", "1.2.0+build.5"), (">1-0", "2.0.0-rc.1")]
        {
            let out = Folder::new();
            helm.run(&["pull", "--plain-http", &chart, "--version", wanted, "--destination", &out.at("")]);
            let (original, pulled) = (helm.home.at(&format!("packed/app-{version}.tgz")), format!("app-{version}.tgz"));
            assert_eq!(std::fs::read(original).unwrap(), std::fs::read(out.at(&pulled)).unwrap(), "{chart} {wanted}");
        }
        assert!(helm.run(&["show", "chart", "--plain-http", &chart]).contains("version: 1.2.0+build.5"));
        let made = helm.run(&["template", "--plain-http", "release", &chart, "--version", "~1.0.0"]);
        assert!(made.contains("made-by-helm"), "{made}");
        helm.fail(&["pull", "--plain-http", &chart, "--version", "^3"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn helm_pulls_a_cached_chart_without_its_upstream() {
    let (helm, (mut pushed, mirror)) = (Tool::new("helm"), pushed_and_mirror());
    push_chart(&helm, &pushed, "1.0.0");
    let chart = format!("oci://{}/ghcr.io/charts/app", mirror.host());
    for out in ["first", "second"] {
        std::fs::create_dir(helm.home.at(out)).unwrap();
        helm.run(&["pull", "--plain-http", &chart, "--version", "1.0.0", "--destination", &helm.home.at(out)]);
        assert!(helm.home.path().join(out).join("app-1.0.0.tgz").is_file());
        // Whatever Helm itself may have kept.
        let _ = std::fs::remove_dir_all(helm.home.at(".cache"));
        pushed.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn helm_logs_in_pushes_and_logs_out() {
    let (folder, helm) = (Folder::new(), Tool::new("helm"));
    let server = with_users(&folder);
    let (chart, charts) = (packed(&helm, "1.0.0"), format!("oci://{}/team", server.host()));
    let push = ["push", "--plain-http", &chart, &charts];
    helm.fail(&push);
    let login = |password| ["registry", "login", "--plain-http", "-u", "ann", "-p", password];
    helm.fail(&[&login("wrong")[..], &[&server.host()]].concat());
    helm.run(&[&login(PASSWORD)[..], &[&server.host()]].concat());
    helm.run(&push);
    helm.run(&["registry", "logout", &server.host()]);
    helm.fail(&push);
    helm.run(&["show", "chart", "--plain-http", &format!("{charts}/app")]);
}
