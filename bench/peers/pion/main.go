// A sender for comparison: pion's own packetizer and one track for all viewers.
//
// usage: pion PORT FILE. FILE is raw H.264 (Annex B) with an access unit delimiter before each picture. Sends 30
// pictures per second.
package main

import (
	"bytes"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/pion/webrtc/v3"
	"github.com/pion/webrtc/v3/pkg/media"
)

func main() {
	recording, err := os.ReadFile(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	var pictures [][]byte
	delimiter := []byte{0, 0, 0, 1, 9}
	for _, part := range bytes.Split(recording, delimiter)[1:] {
		pictures = append(pictures, append(append([]byte{}, delimiter...), part...))
	}
	codec := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeH264}
	track, err := webrtc.NewTrackLocalStaticSample(codec, "video", "camera")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		ticks := time.NewTicker(time.Second / 30)
		for number := 0; ; number++ {
			<-ticks.C
			track.WriteSample(media.Sample{Data: pictures[number%len(pictures)], Duration: time.Second / 30})
		}
	}()
	http.HandleFunc("/offer", func(w http.ResponseWriter, r *http.Request) {
		var offer webrtc.SessionDescription
		if err := json.NewDecoder(r.Body).Decode(&offer); err != nil {
			log.Fatal(err)
		}
		pc, err := webrtc.NewPeerConnection(webrtc.Configuration{})
		if err != nil {
			log.Fatal(err)
		}
		sender, err := pc.AddTrack(track)
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			for buffer := make([]byte, 1500); ; {
				if _, _, err := sender.Read(buffer); err != nil {
					return
				}
			}
		}()
		if err := pc.SetRemoteDescription(offer); err != nil {
			log.Fatal(err)
		}
		answer, err := pc.CreateAnswer(nil)
		if err != nil {
			log.Fatal(err)
		}
		gathered := webrtc.GatheringCompletePromise(pc)
		pc.SetLocalDescription(answer)
		<-gathered
		json.NewEncoder(w).Encode(pc.LocalDescription())
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
