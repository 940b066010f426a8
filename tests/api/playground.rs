//! `GET /`.

use reqwest::StatusCode;

use crate::mock::Mock;
use crate::server::Server;

#[tokio::test]
async fn the_page_and_its_files_are_served_under_a_policy_that_lets_them_speak_to_this_server_only()
{
    let server = Server::of(Mock::uniform()).await;
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/playground.css", "text/css; charset=utf-8"),
        ("/playground.js", "text/javascript; charset=utf-8"),
    ] {
        let url = format!("{}{path}", server.url);
        let answer = server.client.get(url).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], kind);
        let policy = answer.headers()["content-security-policy"]
            .to_str()
            .unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(
            !policy.contains("unsafe") && !policy.contains('*'),
            "{policy}"
        );
        let text = answer.text().await.unwrap();
        assert!(
            !text.contains("http://") && !text.contains("https://"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn every_element_that_the_script_asks_for_is_on_the_page() {
    let server = Server::of(Mock::uniform()).await;
    let (_, page) = server.get("/").await;
    let (_, script) = server.get("/playground.js").await;
    let asked: Vec<&str> = script
        .split("$(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(asked.len() > 20);
    for id in asked {
        assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
    }
}
