// Loaded into the chat page's head. Nothing here speaks to any server.

// Enter that ends the spelling of a Chinese word is not Enter that sends.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.isComposing || event.keyCode === 229)) event.stopImmediatePropagation();
}, true);

function lockstepSave(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: name.endsWith("json") ? "application/json" : "text/markdown" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// all: the page's state, the language, and the rest of the inputs, as Gradio hands them to Python
function lockstepSpeak(all) {
  document.documentElement.lang = all[1] === "zh" ? "zh-CN" : "en"; // which forms of the Han letters to draw
  try { localStorage.setItem("lockstep-language", all[1]); } catch { /* storage is off: the choice lasts as long as the page */ }
  return all;
}

function lockstepGreet(all) {
  let chosen = null;
  try { chosen = localStorage.getItem("lockstep-language"); } catch { /* storage is off */ }
  all[1] = chosen || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
  document.documentElement.lang = all[1] === "zh" ? "zh-CN" : "en";
  if (window.innerWidth < 800) document.querySelector("#settings .toggle-button")?.click();
  return all;
}
