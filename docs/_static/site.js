// Fills the list of versions, of which versions.js beside them all says which there are, and follows a choice.
document.addEventListener("DOMContentLoaded", () => {
  const list = document.getElementById("versions");
  const versions = window.RUNNER_VERSIONS;
  if (!list || !versions) return;
  const { version, page, up } = list.dataset;
  list.replaceChildren(
    ...Object.keys(versions).map((name) => new Option(name, name, name === version, name === version)),
  );
  list.addEventListener("change", () => {
    const target = versions[list.value].includes(page) ? page : "index";
    window.location.href = `${up}${list.value}/${target}.html`;
  });
});

// A page that is opened from a disk may not read others, so that search shows no lines of what it finds, but finds it.
if (window.location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
