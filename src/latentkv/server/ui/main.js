import { chat } from "./chat.js";
import { watch } from "./status.js";

chat();
watch();
