from openklein.contract import MAX_SEED, RESOLUTIONS
from tests.api.sites import Site


def test_the_schema_says_what_generate_takes_and_answers(site: Site) -> None:
    schema = site.client.get("/openapi.json").json()
    generate = schema["paths"]["/v1/generate"]["post"]
    content = generate["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    form, as_json = (content[kind]["schema"]["properties"] for kind in ("multipart/form-data", "application/json"))
    assert set(form) == {"prompt", "model", "images", "image_uris", "aspect_ratio", "seed"}
    assert set(as_json) == set(form) - {"images"}
    assert form["seed"]["maximum"] == MAX_SEED
    assert form["aspect_ratio"]["enum"] == list(RESOLUTIONS)
    assert form["aspect_ratio"]["default"] == "landscape"
    assert form["model"]["default"] == "flux2-klein-4b"
    assert set(generate["responses"]) == {"200", "401", "409", "410", "413", "422", "429", "500", "503", "504"}
    assert set(generate["responses"]["200"]["content"]) == {"image/png"}


def test_a_job_takes_what_generate_takes(site: Site) -> None:
    paths = site.client.get("/openapi.json").json()["paths"]
    job, generate = paths["/v1/jobs"]["post"], paths["/v1/generate"]["post"]
    assert (job["requestBody"], job["parameters"]) == (generate["requestBody"], generate["parameters"])
    assert set(job["responses"]) == {"202", "403"} | set(generate["responses"]) - {"200"}
    assert set(paths["/v1/jobs/{job_id}/image"]["get"]["responses"]) >= {"200", "404", "409", "410"}


def test_keys_are_asked_for_under_v1_alone(site: Site) -> None:
    schema = site.client.get("/openapi.json").json()
    secured = {path: "security" in operation for path, item in schema["paths"].items() for operation in item.values()}
    assert secured == {
        "/v1/generate": True,
        "/v1/jobs": True,
        "/v1/jobs/{job_id}": True,
        "/v1/jobs/{job_id}/image": True,
        "/v1/models": True,
        "/v1/account": True,
        "/v1/usage": True,
        "/v1/keys": True,
        "/v1/keys/{key_id}": True,
        "/health/live": False,
        "/health/ready": False,
    }
    assert schema["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}


def test_every_reference_in_the_schema_leads_somewhere(site: Site) -> None:
    text = site.client.get("/openapi.json").text
    schemas = site.client.get("/openapi.json").json()["components"]["schemas"]
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named
    assert named <= set(schemas)
